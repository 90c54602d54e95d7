// The form beside the text. A change in one is a change in the other. The text keeps its comments and the order of its keys
// while it is edited; lists that the form changes are written anew. What is saved is the document without its comments, and
// the page says so.
import { parseDocument } from "yaml";

const snake = (key) => key.replaceAll("-", "_");

/** What a document says for a path of keys, in either spelling. */
function read(document, path) {
  return document.getIn(path) ?? document.getIn(path.map(snake));
}

function plain(value) {
  return value?.toJSON ? value.toJSON() : value;
}

function list(value) {
  const found = plain(value);
  if (typeof found === "string") return found.split(/\s+/).filter(Boolean);
  return Array.isArray(found) ? found.map(String) : [];
}

function show(control, document) {
  const value = read(document, control.name.split("."));
  if (control.type === "checkbox" && control.hasAttribute("data-member")) control.checked = list(value).includes(control.value);
  else if (control.type === "checkbox") control.checked = plain(value) === true;
  else if (control.hasAttribute("data-list")) control.value = list(value).join(control.tagName === "TEXTAREA" ? "\n" : " ");
  else control.value = plain(value) ?? "";
}

function write(document, path, value) {
  const spelled = document.hasIn(path.map(snake)) ? path.map(snake) : path;
  if (value === undefined) document.deleteIn(spelled);
  else document.setIn(spelled, value);
}

function change(form, control, document) {
  const path = control.name.split(".");
  if (control.hasAttribute("data-member")) {
    const boxes = [...form.querySelectorAll(`[name="${CSS.escape(control.name)}"]`)];
    const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
    write(document, path, chosen.length > 0 ? document.createNode(chosen) : undefined);
  } else if (control.type === "checkbox") {
    write(document, path, control.checked ? true : undefined);
  } else if (control.hasAttribute("data-list")) {
    const items = control.value.split(/\s+/).filter(Boolean);
    write(document, path, items.length > 0 ? document.createNode(items) : undefined);
  } else {
    write(document, path, control.value === "" ? undefined : control.value);
  }
  const lockdown = document.get("lockdown-mode");
  if (lockdown?.items?.length === 0) document.delete("lockdown-mode");
}

/** Binds a form to an editor. */
export function bindForm(form, editor) {
  if (!form) return;
  const controls = [...form.querySelectorAll("input, select, textarea")];
  const note = form.querySelector("[data-broken]");
  let isOurs = false;
  const refresh = () => {
    if (isOurs) return;
    const document = parseDocument(editor.text());
    const isBroken = document.errors.length > 0 || (document.contents !== null && !document.contents?.items);
    note.hidden = !isBroken;
    for (const control of controls) {
      control.disabled = isBroken;
      if (!isBroken && control.ownerDocument.activeElement !== control) show(control, document);
    }
  };
  for (const control of controls) {
    control.addEventListener("input", () => {
      const document = parseDocument(editor.text() || "{}\n");
      if (document.errors.length > 0) return;
      change(form, control, document);
      isOurs = true;
      editor.replace(document.toString({ lineWidth: 0, flowCollectionPadding: false }));
      isOurs = false;
    });
  }
  editor.onChange(refresh);
  refresh();
}
