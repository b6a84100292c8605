// The difference of two texts by words: the longest common subsequence, within bounds.

const LIMIT = 4000;

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

// Returns parts of `ours`, each `same` where it is in `theirs` too, in order, and null beyond what is compared.
export function difference(theirs, ours) {
  const a = words(theirs);
  const b = words(ours);
  if (a.length > LIMIT) return [{ text: ours, same: null }];
  const compared = b.slice(0, LIMIT);
  const width = compared.length + 1;
  const lengths = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = compared.length - 1; j >= 0; j--) {
      lengths[i * width + j] =
        a[i] === b[j] ? lengths[(i + 1) * width + j + 1] + 1 : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const parts = [];
  const add = (text, same) => {
    const last = parts[parts.length - 1];
    if (last && last.same === same) last.text += text;
    else parts.push({ text, same });
  };
  let i = 0;
  let j = 0;
  while (j < compared.length) {
    if (i < a.length && a[i] === b[j]) {
      add(b[j++], true);
      i++;
    } else if (i < a.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i++;
    else add(b[j++], false);
  }
  if (b.length > LIMIT) add(b.slice(LIMIT).join(""), null);
  return parts;
}
