-- Keep only the lowest `rate` of the scored rows by one column: what augmentation starts from (SEAM App. G).
-- The complement of keep_above_lowest.sql at the same rate and seed, but for rows without a score: those are dropped.
-- default rate = 0.2
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
       coalesce(c.lowest, false) AS keep,
       CASE WHEN c.row_id IS NULL THEN 'no ' || $by ELSE 'lowest ' || ($rate * 100)::INTEGER || ' % by ' || $by END AS rule,
       c.value,
       (SELECT max(value) FROM cut WHERE lowest) AS threshold
FROM rows AS r LEFT JOIN cut AS c USING (row_id)
