-- Does SEAM follow length? A filter that only removes long answers would show here, by rank and by quintile.
WITH placed AS (
  SELECT seam_contrast, len(response) AS characters, ntile(5) OVER (ORDER BY len(response), row_id) AS fifth
  FROM rows WHERE seam_contrast IS NOT NULL
), ranked AS (
  SELECT *, rank() OVER (ORDER BY seam_contrast) AS by_seam, rank() OVER (ORDER BY characters) AS by_length FROM placed
)
SELECT fifth, count(*) AS prompts, avg(characters) AS characters, avg(seam_contrast) AS seam,
       (SELECT corr(by_seam, by_length) FROM ranked) AS rank_correlation
FROM ranked
GROUP BY fifth
ORDER BY fifth
