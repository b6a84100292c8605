-- Keep only the lowest `rate` of the scored rows by one column: what augmentation starts from (SEAM App. G).
-- The complement of keep_above_lowest.sql at the same rate and seed, but for rows without a score: those are dropped.
-- default rate = 0.2 (from 0 to 1)
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
       lowest AS keep,
       CASE WHEN value IS NULL THEN 'drop rows without ' || $by
            ELSE 'keep the lowest ' || format('{:.6g}', ($rate * 100)::DOUBLE) || ' % by ' || $by END AS rule,
       value,
       max(value) FILTER (WHERE lowest) OVER () AS threshold
FROM cut
