// What every page loads. Pages work without it as far as they can; it makes them quicker to use.
import "htmx.org/dist/htmx.esm.js";
import { choices, fileInto } from "./choices.js";
import { columns } from "./columns.js";
import { dialogs } from "./dialogs.js";
import { popovers } from "./popovers.js";
import { times } from "./times.js";

document.documentElement.classList.add("js");

/** Calls `each` for every element that is there or comes later and matches. */
function whenever(selector, each) {
  const look = (root) => {
    if (root.nodeType !== Node.ELEMENT_NODE) return;
    if (root.matches(selector)) each(root);
    root.querySelectorAll(selector).forEach(each);
  };
  look(document.documentElement);
  new MutationObserver((changes) => {
    for (const change of changes) change.addedNodes.forEach(look);
  }).observe(document.documentElement, { childList: true, subtree: true });
}

function cookie(name, value) {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  document.cookie = `${name}=${value}; Path=/; Max-Age=31536000; SameSite=Lax${secure}`;
}

function theme(button) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const isDark =
      root.dataset.theme === "dark" ||
      (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = isDark ? "light" : "dark";
    cookie("portcullis-theme", root.dataset.theme);
    dispatchEvent(new Event("portcullis:theme"));
  });
}

function navigation(button) {
  const side = document.getElementById(button.getAttribute("aria-controls"));
  button.addEventListener("click", () => {
    const isOpen = side.classList.toggle("open");
    button.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) side.querySelector("a[href]:not(.brand)")?.focus();
  });
}

function copy(button) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).textContent;
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select and copy it by hand";
    }
    setTimeout(() => (button.textContent = before), 2000);
  });
}

/** A download has what the filters leave now, and not what they left when the page was loaded. */
function filtered(link) {
  link.addEventListener("click", () => (link.search = location.search));
}

// What was done stands on the page; a bookmark or a reload must not say it again.
if (new URLSearchParams(location.search).has("done")) {
  const address = new URL(location.href);
  address.searchParams.delete("done");
  history.replaceState(history.state, "", address);
}

whenever("time[data-style]", times);
whenever("button[data-theme-toggle]", theme);
whenever("button[data-navigation]", navigation);
whenever("button[data-copy]", copy);
whenever("a[data-filtered]", filtered);
whenever("form[data-choices]", choices);
whenever("input[data-file-into]", fileInto);
whenever("[popover].list", popovers);
whenever("table[data-columns]", columns);
whenever("#dialog dialog", dialogs);
