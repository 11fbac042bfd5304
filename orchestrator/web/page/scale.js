// Where an axis ends.

const STEPS = [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10];

/** A round number at or above a value, with a round half. */
export function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return STEPS.map((step) => step * power).find((step) => step >= value * 0.9999);
}
