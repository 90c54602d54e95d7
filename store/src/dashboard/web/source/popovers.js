// Menus open below their button, and within the window.

/** Places a menu whenever it opens. */
export function popovers(menu) {
  if (menu.dataset.placed) return;
  menu.dataset.placed = "true";
  const button = document.querySelector(`[popovertarget="${CSS.escape(menu.id)}"]`);
  menu.addEventListener("toggle", (event) => {
    button?.setAttribute("aria-expanded", String(event.newState === "open"));
    if (event.newState !== "open" || !button) return;
    const at = button.getBoundingClientRect();
    const size = menu.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.right - size.width, innerWidth - size.width - 8));
    const below = at.bottom + 4;
    const top = below + size.height > innerHeight - 8 ? Math.max(8, at.top - size.height - 4) : below;
    menu.style.left = `${left}px`;
    menu.style.top = `${top}px`;
  });
  // What was chosen is done; boxes are ticked one after the other.
  menu.addEventListener("click", (event) => {
    if (event.target.closest("a, button")) menu.hidePopover();
  });
  menu.addEventListener("keydown", (event) => {
    const items = [...menu.querySelectorAll("a, button, input")];
    const at = items.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || items.length === 0) return;
    event.preventDefault();
    items[(at + step + items.length) % items.length].focus();
  });
}
