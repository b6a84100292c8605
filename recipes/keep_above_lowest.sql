-- Drop the lowest `rate` of the scored rows by one column, keep the rest.
-- The paper's selection: rate 0.2 by seam_contrast (SEAM §5). Rows without a score are kept, or dropped with nulls: drop.
-- A seam_* score of 0 means nothing was misjudged: such a row is never dropped. Ties are broken by a seeded hash.
-- default rate = 0.2 (from 0 to 1)
-- default nulls = keep (or drop)
-- default seed = 0
WITH scored AS (
  SELECT row_id, CASE WHEN isfinite({by}::DOUBLE) THEN {by}::DOUBLE END AS value FROM rows
), placed AS (
  SELECT row_id, value, count(value) OVER () AS n,
         row_number() OVER (ORDER BY value NULLS LAST, xor(row_id, $seed * 7919) * 2654435761 % 4294967296) AS place
  FROM scored
), cut AS (
  SELECT row_id, value, value IS NOT NULL AND place <= ceil(round($rate * n, 6)) AND (value < 0 OR NOT starts_with($by, 'seam_')) AS lowest
  FROM placed
)
SELECT row_id,
       CASE WHEN value IS NULL THEN $nulls = 'keep' ELSE NOT lowest END AS keep,
       CASE WHEN value IS NULL THEN $nulls || ' rows without ' || $by
            ELSE 'drop the lowest ' || format('{:.6g}', ($rate * 100)::DOUBLE) || ' % by ' || $by END AS rule,
       value,
       max(value) FILTER (WHERE lowest) OVER () AS threshold
FROM cut
