/** The server behind the page: what `api.ts` speaks, in the page's terms. */

import type { Api, EverythingOptions, ExportFormat, Preset, PromptForm } from "../api";
import type { Backend } from "./backend";

export function httpBackend(api: Api): Backend {
  return {
    async info() {
      const { models, served, presets, version, text, projects, decoder, limits } = await api.models();
      const prompts = models.find((model) => model.served)?.prompts ?? [];
      return { served, presets, version, text, projects, decoder, prompts, uploadBytes: limits.upload_bytes };
    },
    projects: () => api.projects(),
    createProject: (name) => api.createProject(name),
    renameProject: (project, name) => api.renameProject(project, name),
    deleteProject: (project) => api.deleteProject(project),
    categories: (project) => api.categories(project),
    createCategory: (project, name, colour) => api.createCategory(project, name, colour),
    updateCategory: (project, id, change) => api.updateCategory(project, id, change),
    deleteCategory: (project, id) => api.deleteCategory(project, id),
    images: (project) => api.images(project),
    addImage: (project, file, name) => api.addImage(project, file, name),
    deleteImage: (project, image) => api.deleteImage(project, image),
    imageFile: (project, image) => api.imageFile(project, image),
    openImage: async (project, image) => (await api.openImage(project, image)).id,
    uploadImage: async (file) => (await api.uploadImage(file)).id,
    annotations: (project, image) => api.annotations(project, image),
    async saveAnnotations(project, image, put, remove) {
      const bodies = put.map((body) => ({ ...body, prompt: body.prompt as PromptForm | null }));
      await api.saveAnnotations(project, image, bodies, remove);
    },
    exportProject: (project, format) => api.exportProject(project, format as ExportFormat),
    importInto: (project, file) => api.importInto(project, file),
    async everything(engineImage, { preset, options }, onProgress, signal) {
      const body = { preset: preset as Preset, options: options as EverythingOptions };
      return [...(await api.everything(engineImage, body, { onProgress, signal })).masks];
    },
    async findText(engineImage, text, signal) {
      const answer = await api.predict(engineImage, [{ text }], { signal });
      return [...(answer.results[0]?.masks ?? [])];
    },
  };
}
