// A dialog that was loaded into the page opens; closing it takes it away.

/** Opens a dialog. */
export function dialogs(dialog) {
  if (dialog.open) return;
  const before = document.activeElement;
  dialog.showModal();
  dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus?.();
  });
  for (const button of dialog.querySelectorAll("[data-close]")) {
    button.addEventListener("click", (event) => {
      event.preventDefault();
      dialog.close();
    });
  }
}
