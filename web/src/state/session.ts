/** Actions on projects and images: start, open, add, delete; what belongs to the open image is put into the state. */

import { type App, reasonOf, type Segmenter } from "./app";
import { ApiError } from "../problems";
import type { Editing } from "./editing";
import type { Finding } from "./finding";
import { createOpenedImages } from "./opened";
import { openOutbox, type Entry } from "./outbox";
import { makeId, readPlace, writePlace } from "./place";
import { entriesFor, withPending } from "./saving";
import { emptyScene, type Scene, sceneOf } from "./scene";
import { memoryShelf, openShelf } from "./storage";
import type { ImageItem } from "./types";

export interface Projects {
  start(): Promise<void>;
  openProject(id: string, image?: string | null): Promise<void>;
  createProject(name: string): Promise<void>;
  renameProject(id: string, name: string): Promise<void>;
  deleteProject(id: string): Promise<void>;
  addFiles(files: readonly File[], projectName?: string): Promise<void>;
  openImage(id: string): Promise<void>;
  deleteImage(id: string): Promise<void>;
  /** Read the annotations of the open image again, for example after an import. */
  reloadAnnotations(): Promise<void>;
  /** The objects of an image, if they are known here. */
  sceneOfImage(id: string): Scene | null;
}

const LAST_PROJECT = "anysam.project";

export function createProjects(app: App, editing: Editing, finding: Finding): Projects {
  const { store, backend, session, say } = app;
  const scenes = new Map<string, Scene>(); // of images that have been open: undo goes on where it was
  const opened = createOpenedImages(app);
  let visit = 0; // which opening is the latest; answers to earlier ones are dropped

  const persistent = (): boolean => store.get().info?.projects ?? false;

  session.changeScene = (next) => {
    const { scene, projectId, imageId, categories } = store.get();
    if (next === scene || !imageId) return;
    store.set({ scene: next });
    scenes.set(imageId, next);
    if (projectId && next.objects !== scene.objects) {
      session.outbox?.add(entriesFor(projectId, imageId, scene.objects, next.objects, categories));
    }
  };

  async function guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) store.set({ connection: "token" });
      else say.notice(reasonOf(error));
    }
  }

  async function start(): Promise<void> {
    store.set({ connection: "connecting" });
    try {
      const info = await backend.info();
      session.outbox ??= await openOutbox(
        info.projects ? await openShelf<Entry>("outbox") : memoryShelf<Entry>(),
        (project, image, put, remove) => backend.saveAnnotations(project, image, put, remove),
        (save) => store.set({ save }),
      );
      const projects = info.projects ? await backend.projects() : [];
      store.set({ info, projects, connection: "ready" });
      if (!info.projects) return;
      const place = readPlace(location.hash);
      const wanted = [place.project, localStorage.getItem(LAST_PROJECT), projects[0]?.id];
      const project = wanted.find((id) => projects.some((each) => each.id === id));
      if (project) await openProject(project, place.image);
    } catch (error) {
      const token = error instanceof ApiError && error.status === 401;
      store.set({ connection: token ? "token" : "offline", message: token ? "" : reasonOf(error) });
    }
  }

  function leaveImage(): void {
    visit += 1;
    editing.drop();
    finding.cancel();
    Object.assign(session, { segmenter: null, engineImage: null, reopen: null });
    store.set({
      imageId: null,
      size: null,
      photo: null,
      busy: null,
      mode: null,
      modeReason: null,
      scene: emptyScene,
      hidden: new Set(),
      preview: null,
      drawing: null,
      crosshair: null,
      proposals: null,
      proposal: null,
    });
  }

  function showMode(segmenter: Segmenter): void {
    store.set({ mode: segmenter.mode, modeReason: segmenter.reason ?? null });
  }

  function whereAnswered(): string {
    const { mode, modeReason } = store.get();
    return mode === "server" ? `Clicks are answered by the server. ${modeReason ?? ""}` : "Clicks are answered on this device.";
  }

  function rememberPlace(): void {
    const { projectId, imageId } = store.get();
    if (!persistent()) return;
    history.replaceState(null, "", writePlace({ project: projectId, image: imageId }) || location.pathname);
    if (projectId) localStorage.setItem(LAST_PROJECT, projectId);
  }

  function openProject(id: string, image: string | null = null): Promise<void> {
    return guarded(async () => {
      leaveImage();
      opened.closeAll();
      scenes.clear();
      store.set({ projectId: id, images: [], categories: [], categoryId: null });
      const own = visit;
      const [categories, images] = await Promise.all([backend.categories(id), backend.images(id)]);
      if (own !== visit) return;
      store.set({ categories, images, categoryId: categories[0]?.id ?? null });
      rememberPlace();
      const first = images.find((each) => each.id === image) ?? images[0];
      if (first) await openImage(first.id);
    });
  }

  async function refreshProjects(): Promise<void> {
    if (persistent()) store.set({ projects: await backend.projects() });
  }

  async function createProject(name: string): Promise<void> {
    const project = await backend.createProject(name);
    await refreshProjects();
    await openProject(project.id);
  }

  async function openImage(id: string): Promise<void> {
    if (store.get().imageId === id) return;
    const item = store.get().images.find((image) => image.id === id);
    if (!item) return;
    leaveImage();
    const own = visit;
    const still = (): boolean => own === visit;
    const { projectId } = store.get();
    store.set({ imageId: id, size: item.size, busy: { what: "Opening", done: null } });
    rememberPlace();
    const onProgress = (what: string, done: number): void => {
      if (still()) store.set({ busy: { what, done } });
    };
    const give = (): Promise<string> =>
      projectId ? backend.openImage(projectId, id) : backend.uploadImage(item.file as Blob);
    const openModel = async (): Promise<Segmenter> => {
      const { engineImage, segmenter } = await opened.open(id, give, onProgress);
      if (still()) {
        Object.assign(session, { segmenter, engineImage });
        showMode(segmenter);
        store.set({ busy: null });
        void segmenter.settled?.then(() => session.segmenter === segmenter && showMode(segmenter));
      }
      return segmenter;
    };
    // The photograph is shown as soon as it is here, the masks too; neither waits for the model.
    const shown = loadPhoto(item, projectId).then((photo) => still() && store.set({ photo }));
    const known = scenes.get(id);
    const listed = known ? Promise.resolve(known) : loadScene(projectId, id);
    const masks = listed.then((scene) => {
      scenes.set(id, scene);
      if (still()) store.set({ scene });
    });
    session.reopen = () => {
      opened.close(id);
      return openModel();
    };
    try {
      await Promise.all([shown, masks, openModel()]);
      if (still()) say.status(`${item.name} is ready. ${whereAnswered()}`);
    } catch (error) {
      if (!still()) return;
      store.set({ busy: null });
      if (error instanceof ApiError && error.status === 401) store.set({ connection: "token" });
      else say.notice(`${item.name}: ${reasonOf(error)}`, { label: "Try again", run: () => void openAgain(id) });
    }
  }

  async function openAgain(id: string): Promise<void> {
    opened.close(id);
    leaveImage();
    await openImage(id);
  }

  async function loadPhoto(item: ImageItem, projectId: string | null): Promise<Blob> {
    return item.file ?? (await backend.imageFile(projectId as string, item.id));
  }

  async function loadScene(projectId: string | null, id: string): Promise<Scene> {
    if (!projectId) return emptyScene;
    const annotations = await backend.annotations(projectId, id);
    return sceneOf(withPending(annotations, session.outbox?.pendingFor(projectId, id) ?? []));
  }

  async function addFiles(files: readonly File[], projectName?: string): Promise<void> {
    const pictures = files.filter((file) => file.type.startsWith("image/") || /\.(jpe?g|png|webp|tiff?|bmp|gif|avif)$/i.test(file.name));
    if (pictures.length === 0) {
      if (files.length > 0) say.notice("There is no image among these files. JPEG, PNG, WebP and TIFF are accepted.");
      return;
    }
    await guarded(async () => {
      if (persistent() && (projectName || !store.get().projectId)) await createProject(projectName ?? "My images");
      let first: string | null = null;
      const refused: string[] = [];
      for (const [i, file] of pictures.entries()) {
        store.set({ adding: { done: i, of: pictures.length } });
        try {
          const item = await addOne(file);
          const known = store.get().images.some((image) => image.id === item.id); // the same file again
          if (!known) store.set(({ images }) => ({ images: [...images, item] }));
          if (!first) {
            first = item.id;
            void openImage(item.id);
          }
        } catch (error) {
          if (error instanceof ApiError && error.status === 401) throw error;
          refused.push(`${file.name}: ${reasonOf(error)}`);
        }
      }
      if (refused.length > 0) say.notice(refused.join("\n"));
      await refreshProjects();
    });
    store.set({ adding: null });
  }

  async function addOne(file: File): Promise<ImageItem> {
    const { projectId } = store.get();
    if (projectId) return backend.addImage(projectId, file, file.name);
    return { id: makeId(), name: file.name, size: null, annotations: 0, file };
  }

  return {
    start,
    openProject,
    createProject: (name) => guarded(() => createProject(name)),
    renameProject: (id, name) =>
      guarded(async () => {
        await backend.renameProject(id, name);
        await refreshProjects();
      }),
    deleteProject: (id) =>
      guarded(async () => {
        await backend.deleteProject(id);
        session.outbox?.forget(id);
        await refreshProjects();
        if (store.get().projectId !== id) return;
        leaveImage();
        opened.closeAll();
        scenes.clear();
        store.set({ projectId: null, images: [], categories: [], categoryId: null });
        rememberPlace();
        const next = store.get().projects[0];
        if (next) await openProject(next.id);
      }),
    addFiles,
    openImage,
    deleteImage: (id) =>
      guarded(async () => {
        const { projectId, images, imageId } = store.get();
        if (projectId) {
          await backend.deleteImage(projectId, id);
          session.outbox?.forget(projectId, id);
        }
        opened.close(id);
        scenes.delete(id);
        const at = images.findIndex((image) => image.id === id);
        const left = images.filter((image) => image.id !== id);
        store.set({ images: left });
        if (imageId !== id) return;
        leaveImage();
        rememberPlace();
        const next = left[Math.min(at, left.length - 1)];
        if (next) await openImage(next.id);
      }),
    reloadAnnotations: () =>
      guarded(async () => {
        const { projectId, imageId } = store.get();
        if (!projectId) return;
        const [categories, images] = await Promise.all([backend.categories(projectId), backend.images(projectId)]);
        store.set({ categories, images });
        const open = imageId && store.get().imageId === imageId ? await loadScene(projectId, imageId) : null;
        scenes.clear();
        if (open && imageId && store.get().imageId === imageId) {
          scenes.set(imageId, open);
          store.set({ scene: open });
        }
      }),
    sceneOfImage: (id) => (store.get().imageId === id ? store.get().scene : (scenes.get(id) ?? null)),
  };
}
