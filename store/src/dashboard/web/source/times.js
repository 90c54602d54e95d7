// Times in the reader's zone; UTC is what the page says without a script, and on hover.

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
const ago = new Intl.RelativeTimeFormat(undefined, { numeric: "auto" });
const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

function relative(time) {
  const seconds = (time - Date.now()) / 1000;
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? ["second", 1];
  return ago.format(Math.round(seconds / size), unit);
}

/** Writes a time as its element asks for. */
export function times(element) {
  if (element.dataset.done) return;
  element.dataset.done = "true";
  const time = new Date(element.dateTime);
  if (Number.isNaN(time.getTime())) return;
  const write = () => {
    const style = element.dataset.style;
    element.textContent = style === "ago" ? relative(time) : style === "clock" ? clock.format(time) : moment.format(time);
  };
  write();
  if (element.dataset.style !== "ago") return;
  const timer = setInterval(() => (element.isConnected ? write() : clearInterval(timer)), 30_000);
}
