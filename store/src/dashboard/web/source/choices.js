// Fields that belong to one choice of a form show with it; and a file is read into a field.

/** Shows the fields of what is chosen in the form's select. */
export function choices(form) {
  const select = form.elements[form.dataset.choices];
  const show = () => {
    for (const field of form.querySelectorAll("[data-for]")) {
      const isShown = field.dataset.for.split(" ").includes(select.value);
      field.hidden = !isShown;
      for (const control of field.querySelectorAll("input, select, textarea")) control.disabled = !isShown;
    }
  };
  select.addEventListener("change", show);
  show();
}

/** Reads a chosen file into a field. */
export function fileInto(input) {
  input.addEventListener("change", async () => {
    const [file] = input.files;
    if (file) document.getElementById(input.dataset.fileInto).value = await file.text();
  });
}
