// Numbers as people read them.

const SIZES = ["B", "kB", "MB", "GB", "TB"];

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let unit = 0;
  let left = value;
  while (left >= 999.5 && unit < SIZES.length - 1) {
    left /= 1000;
    unit += 1;
  }
  return `${digits(left)} ${SIZES[unit]}`;
}

export const bytesPerSecond = (value) =>
  value === null || value === undefined ? "–" : `${bytes(value)}/s`;

/** Three digits that matter, and no more. */
export function digits(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 99.95) return Math.round(value).toString();
  if (size >= 9.995) return value.toFixed(1);
  return size >= 0.0995 ? value.toFixed(2) : value.toPrecision(2);
}

/** For axes, where `50.0` says no more than `50`. */
export const trimmed = (value) => String(Number(digits(value)));

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  if (value < 0.9995) return `${digits(value * 1000)} ms`;
  if (value < 120) return `${digits(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${digits(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

/** How long ago something was. */
export const ago = (ms) => `${ms < 120_000 ? `${Math.round(ms / 1000)} s` : `${Math.round(ms / 60_000)} min`} ago`;

export const rate = (value) => (value === null || value === undefined ? "–" : `${digits(value)}/s`);

export const percent = (value) => `${Math.round(value)} %`;

/** The time of day here, `07:05:09`. By hand: a browser's first formatter of dates takes longer to make than the page. */
export function clock(text) {
  const at = new Date(text);
  if (Number.isNaN(at.getTime())) return text;
  return [at.getHours(), at.getMinutes(), at.getSeconds()].map((part) => String(part).padStart(2, "0")).join(":");
}

export function shortened(text, most) {
  return text.length <= most ? text : `${text.slice(0, Math.max(1, most - 1))}…`;
}
