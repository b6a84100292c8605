-- Drop the lowest `rate` of the scored rows by one column, keep the rest.
-- The paper's selection: rate 0.2 by seam_contrast (SEAM §5). Rows without a score are kept, or dropped with nulls: drop.
-- A seam_* score of 0 means nothing was misjudged: such a row is never dropped. Ties are broken by a seeded hash.
-- default rate = 0.2
-- default nulls = keep
-- default seed = 0
WITH scored AS (
  SELECT row_id, {by}::DOUBLE AS value,
         row_number() OVER (ORDER BY {by}, md5(concat($seed, '-', row_id))) AS place,
         count(*) OVER () AS n
  FROM rows
  WHERE {by} IS NOT NULL AND isfinite({by}::DOUBLE)
), cut AS (
  SELECT *, place <= ceil($rate * n) AND (value < 0 OR NOT starts_with($by, 'seam_')) AS lowest FROM scored
)
SELECT r.row_id,
       CASE WHEN c.row_id IS NULL THEN $nulls = 'keep' ELSE NOT c.lowest END AS keep,
       CASE WHEN c.row_id IS NULL THEN 'no ' || $by ELSE 'lowest ' || ($rate * 100)::INTEGER || ' % by ' || $by END AS rule,
       c.value,
       (SELECT max(value) FROM cut WHERE lowest) AS threshold
FROM rows AS r LEFT JOIN cut AS c USING (row_id)
