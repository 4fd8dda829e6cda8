/** The page's beginning: the server, the token, and the element that the page goes into. */

import "./styles/page.css";
import { Api } from "./api";
import { openSegmenter } from "./segmenter";
import { createApp } from "./state/app";
import { httpBackend } from "./state/http_backend";
import { startPage } from "./ui/page";
import { createToasts } from "./ui/toasts";

const TOKEN = "anysam.token";

/** The token from the address (#token=...), which is then taken out of it, or the one of this tab. */
function findToken(): string | null {
  const values = new URLSearchParams(location.hash.slice(1));
  const given = values.get("token");
  if (given) {
    values.delete("token");
    history.replaceState(null, "", `${location.pathname}#${values}`);
    sessionStorage.setItem(TOKEN, given);
  }
  return given ?? sessionStorage.getItem(TOKEN);
}

const api = new Api("", findToken());
const toasts = createToasts();
const app = createApp(
  httpBackend(api),
  (image, onProgress) => openSegmenter(api, image, onProgress),
  toasts.say,
);
startPage(document.getElementById("page") as HTMLElement, app, toasts.element, (token) => {
  api.token = token;
  sessionStorage.setItem(TOKEN, token);
});
