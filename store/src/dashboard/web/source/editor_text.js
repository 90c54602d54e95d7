// The text of a policy: colours, completion from the JSON Schema, and the store's own messages while one types.
import { autocompletion, closeBrackets, closeBracketsKeymap, completionKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap } from "@codemirror/commands";
import { yaml } from "@codemirror/lang-yaml";
import { HighlightStyle, bracketMatching, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { forceLinting, lintGutter, linter } from "@codemirror/lint";
import { EditorState } from "@codemirror/state";
import { EditorView, drawSelection, highlightActiveLine, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { completions } from "./editor_completion.js";

const colours = HighlightStyle.define([
  { tag: [tags.propertyName, tags.definition(tags.propertyName)], color: "var(--link)", fontWeight: "600" },
  { tag: [tags.string, tags.content], color: "var(--text)" },
  { tag: [tags.bool, tags.keyword, tags.number, tags.null], color: "var(--warn)" },
  { tag: tags.comment, color: "var(--muted)", fontStyle: "italic" },
  { tag: tags.invalid, color: "var(--bad)" },
]);

const looks = EditorView.theme({
  "&": { fontSize: "13.5px", backgroundColor: "transparent", color: "var(--text)", minHeight: "320px" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--mono)", lineHeight: "1.6", minHeight: "320px" },
  // The gutter and the place to click reach to the end of the box, however few lines there are.
  ".cm-content, .cm-gutter": { minHeight: "320px" },
  ".cm-gutters": { backgroundColor: "var(--sunken)", color: "var(--muted)", border: "none", borderRight: "1px solid var(--line)" },
  ".cm-activeLine, .cm-activeLineGutter": { backgroundColor: "color-mix(in srgb, var(--accent) 9%, transparent)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": { backgroundColor: "color-mix(in srgb, var(--accent) 28%, transparent)" },
  ".cm-tooltip": { backgroundColor: "var(--raised)", color: "var(--text)", border: "1px solid var(--line)", borderRadius: "8px", boxShadow: "0 8px 24px rgb(0 0 0 / 22%)", overflow: "hidden" },
  ".cm-tooltip-autocomplete ul li": { padding: "3px 8px" },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { backgroundColor: "var(--accent)", color: "var(--on-accent)" },
  ".cm-completionInfo": { maxWidth: "360px", padding: "8px 10px", fontFamily: "system-ui, sans-serif" },
  // The editor's own marks are images in `data:` addresses, which a page may not load; these are none.
  ".cm-lintRange-error": { backgroundImage: "none", textDecoration: "underline wavy var(--bad)", textUnderlineOffset: "3px", textDecorationSkipInk: "none" },
  ".cm-lint-marker": { width: "0.8em", height: "0.8em", marginTop: "0.4em" },
  ".cm-lint-marker-error": { content: '""', borderRadius: "50%", backgroundColor: "var(--bad)" },
  ".cm-diagnostic": { padding: "6px 10px", fontFamily: "system-ui, sans-serif" },
});

/** Asks the store what is wrong with a text; it says so with line and column. */
async function problems(address, proof, text) {
  const response = await fetch(address, {
    method: "POST",
    credentials: "same-origin",
    headers: { "content-type": "application/x-www-form-urlencoded", "x-portcullis-proof": proof },
    body: new URLSearchParams({ document: text }),
  });
  return response.ok ? (await response.json()).problems : [];
}

function diagnostic(state, problem) {
  const line = state.doc.line(Math.min(Math.max(problem.line, 1), state.doc.lines));
  const from = Math.min(line.from + Math.max(problem.column - 1, 0), line.to);
  return { from, to: Math.max(from, line.to), severity: "error", message: `${problem.message}\n${problem.hint}` };
}

/**
 * What is typed over a selection is put in by the editor: the browser would keep the colours of what it replaces as an inline style
 * for a moment, which a page may not have.
 */
const typedOver = EditorView.domEventHandlers({
  beforeinput(event, view) {
    const { from, to, empty } = view.state.selection.main;
    if (empty || event.inputType !== "insertText" || event.data === null || view.state.readOnly) return false;
    const insert = () => view.state.update(view.state.replaceSelection(event.data), { userEvent: "input.type", scrollIntoView: true });
    // Brackets are put around a selection.
    const isHandled = view.state.facet(EditorView.inputHandler).some((handle) => handle(view, from, to, event.data, insert));
    if (!isHandled) view.dispatch(insert());
    return true;
  },
});

/** Puts an editor in a text area's place. The styles live in a shadow root of its own, so that the page needs no inline styles. */
export function createEditor(area, { check, proof, schema, onProblems }) {
  const host = document.createElement("div");
  host.className = "editor ready";
  area.before(host);
  const root = host.attachShadow({ mode: "open" });
  const listeners = [];
  const label = area.labels?.[0]?.textContent ?? "Document";
  const extensions = [
    typedOver, lineNumbers(), history(), drawSelection(), bracketMatching(), closeBrackets(), highlightActiveLine(),
    indentUnit.of("  "), yaml(), syntaxHighlighting(colours), looks, EditorView.lineWrapping,
    autocompletion({ override: [completions(schema)] }),
    keymap.of([...closeBracketsKeymap, ...defaultKeymap, ...historyKeymap, ...completionKeymap]),
    EditorView.contentAttributes.of({ "aria-label": label, spellcheck: "false" }),
    EditorView.updateListener.of((update) => {
      if (!update.docChanged) return;
      area.value = update.state.doc.toString();
      listeners.forEach((listener) => listener(area.value));
    }),
  ];
  if (area.readOnly) extensions.push(EditorState.readOnly.of(true));
  if (check && !area.readOnly) {
    const source = async (view) => {
      const found = await problems(check, proof, view.state.doc.toString());
      onProblems(found.length);
      return found.map((problem) => diagnostic(view.state, problem));
    };
    extensions.push(lintGutter(), linter(source, { delay: 350 }));
  }
  const view = new EditorView({ state: EditorState.create({ doc: area.value, extensions }), parent: root, root });
  return {
    text: () => view.state.doc.toString(),
    replace(text) {
      const old = view.state.doc.toString();
      if (text === old) return;
      view.dispatch({ changes: { from: 0, to: old.length, insert: text } });
      forceLinting(view);
    },
    onChange: (listener) => listeners.push(listener),
  };
}

