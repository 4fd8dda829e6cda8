/** Elements without a framework. Styles are classes only: the page's policy allows no inline ones. */

type Child = Node | string | null | false | undefined;

export interface Props {
  readonly class?: string;
  readonly testid?: string;
  readonly title?: string;
  readonly label?: string; // aria-label
  readonly role?: string;
  readonly attrs?: Readonly<Record<string, string | number | boolean>>;
  readonly on?: { readonly [K in keyof HTMLElementEventMap]?: (event: HTMLElementEventMap[K]) => void };
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: readonly Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (props.class) element.className = props.class;
  if (props.testid) element.dataset["testid"] = props.testid;
  if (props.title) element.title = props.title;
  if (props.label) element.setAttribute("aria-label", props.label);
  if (props.role) element.setAttribute("role", props.role);
  for (const [name, value] of Object.entries(props.attrs ?? {})) {
    if (value !== false) element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const [name, listener] of Object.entries(props.on ?? {})) {
    element.addEventListener(name, listener as EventListener);
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== false && child !== undefined));
  return element;
}

export function button(props: Props & { readonly press: (event: MouseEvent) => void }, ...children: Child[]): HTMLButtonElement {
  return h("button", { ...props, attrs: { type: "button", ...props.attrs }, on: { ...props.on, click: props.press } }, ...children);
}

/** Makes the children of a parent those of a list, keeping the elements of members that stay. */
export function keyed<T>(
  parent: HTMLElement,
  items: readonly T[],
  keyOf: (item: T) => string,
  make: (item: T) => HTMLElement,
  update: (element: HTMLElement, item: T) => void,
): void {
  const old = new Map<string, HTMLElement>();
  for (const child of parent.children) old.set((child as HTMLElement).dataset["key"] ?? "", child as HTMLElement);
  let place: Element | null = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let element = old.get(key);
    old.delete(key);
    if (!element) {
      element = make(item);
      element.dataset["key"] = key;
    }
    update(element, item);
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
  }
  for (const gone of old.values()) gone.remove();
}

export function show(element: HTMLElement, visible: boolean): void {
  element.hidden = !visible;
}

export function download(blob: Blob, name: string): void {
  const url = URL.createObjectURL(blob);
  const link = h("a", { attrs: { href: url, download: name } });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
