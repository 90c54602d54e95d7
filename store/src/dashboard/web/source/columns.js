// Which columns of a table are shown: boxes with `data-column-choice`; kept in this browser.

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? null;
  } catch {
    return null;
  }
}

/** Lets people choose the columns of a table. */
export function columns(table) {
  if (table.dataset.ready) return;
  table.dataset.ready = "true";
  const name = `portcullis-columns-${table.dataset.columns}`;
  const boxes = [...document.querySelectorAll(`input[data-column-choice="${CSS.escape(table.dataset.columns)}"]`)];
  const hidden = new Set(read(name) ?? boxes.filter((box) => !box.defaultChecked).map((box) => box.value));
  const show = () => {
    for (const box of boxes) box.checked = !hidden.has(box.value);
    // Wider with each column that is shown; what no longer fits is scrolled to.
    const shown = table.querySelectorAll("th").length - hidden.size;
    table.style.setProperty("--shown", shown);
    // A row over all columns has no more than there are: others would get a width of their own.
    for (const cell of table.querySelectorAll("td[colspan]")) cell.colSpan = shown;
    for (const cell of table.querySelectorAll("[data-column]")) cell.classList.toggle("off", hidden.has(cell.dataset.column));
  };
  for (const box of boxes) {
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(box.value);
      else hidden.add(box.value);
      try {
        localStorage.setItem(name, JSON.stringify([...hidden]));
      } catch {
        // Without storage the choice lasts for this page.
      }
      show();
    });
  }
  show();
  new MutationObserver(show).observe(table, { childList: true, subtree: true });
}
