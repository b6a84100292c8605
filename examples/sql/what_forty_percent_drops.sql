-- What would dropping the lowest 40 % by SEAM take away, against what stays?
WITH cut AS (
  SELECT *, seam_contrast < 0 AND row_number() OVER (ORDER BY seam_contrast NULLS LAST, row_id)
            <= ceil(0.4 * count(seam_contrast) OVER ()) AS lowest
  FROM rows
)
SELECT coalesce(lowest, false) AS dropped, count(*) AS prompts, avg(len(response)) AS characters,
       avg((query_type = 'open')::INTEGER) AS open_ended, avg(reward) AS golden_reward, avg(seam_contrast) AS seam
FROM cut
GROUP BY dropped
ORDER BY dropped
