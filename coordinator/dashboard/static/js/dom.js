// SPDX-License-Identifier: Apache-2.0
// Elements from data. Text is always set as text: names and reasons come from strangers, and nothing here ever parses HTML.

/**
 * A new element. `props`: `class`, `on` (listeners by event), everything else is an attribute (true: present, false or null: absent).
 * Children are elements or text; null is left out.
 */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else setAttribute(element, name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set, change or remove an attribute; nothing is touched if it is already so. */
export function setAttribute(element, name, value) {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Set an element's text, if it is another one. */
export function setText(element, text) {
  const value = String(text);
  if (element.textContent !== value) element.textContent = value;
}

/** Set text, and the same as a tooltip where it may be cut off. */
export function setCut(element, text) {
  setText(element, text);
  setAttribute(element, "title", text || null);
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** Fill a bar: `share` of its width, at most all of it. */
export function setShare(element, share) {
  const value = `scaleX(${Math.min(1, Math.max(0, share ?? 0)).toFixed(4)})`;
  if (element.style.transform !== value) element.style.transform = value;
}

/**
 * Make `parent` hold one element per item, in order: kept, made, moved and removed by key. The focus stays where it is.
 * `elements` maps keys to what `make(item)` gave: {element, update(item)}.
 */
export function keyed(parent, elements, items, keyOf, make) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const wanted = new Set(items.map(keyOf));
  for (const [key, entry] of elements) {
    if (wanted.has(key)) continue;
    entry.element.remove();
    elements.delete(key);
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let entry = elements.get(key);
    if (!entry) elements.set(key, (entry = make(item)));
    entry.update(item);
    if (entry.element === next) next = next.nextElementSibling;
    else parent.insertBefore(entry.element, next);
  }
  if (focused && focused.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}

/** A table's head: `columns` are {label, class}. */
export function head(columns) {
  return h("thead", {}, h("tr", {}, ...columns.map((column) => h("th", { scope: "col", class: column.class }, column.label))));
}
