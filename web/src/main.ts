/** The page's beginning: the server's address, the parts, and the element they go into. */

import "./styles/page.css";
import { createApi } from "./api";
import { openSegmenter } from "./segmenter";
import { createApp } from "./state/app";
import { httpBackend } from "./state/http_backend";
import { startPage } from "./ui/page";
import { createToasts } from "./ui/toasts";
