// The policy's editor: the text, and the form beside it, both views of one document.
import { createEditor } from "./editor_text.js";
import { bindForm } from "./editor_form.js";

const area = document.querySelector("textarea[data-editor]");
if (area) {
  const form = area.closest("form");
  const editor = createEditor(area, {
    check: area.dataset.editor,
    proof: form.elements.proof.value,
    schema: area.dataset.schema,
    onProblems: (count) => {
      // It stands outside of the form, where it is seen beside both views.
      const button = [...form.elements].find((control) => control.matches("button[data-save]"));
      if (button) button.dataset.problems = String(count);
    },
  });
  bindForm(document.querySelector("[data-policy-form]"), editor);
}
