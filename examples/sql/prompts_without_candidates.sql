-- Which prompts have no contrast set, and are they another kind of prompt?
SELECT coalesce(candidates_contrast, 0) = 0 AS without, count(*) AS prompts, avg(len(prompt)) AS characters,
       avg((query_type = 'open')::INTEGER) AS open_ended, avg(reward) AS golden_reward
FROM rows
GROUP BY without
ORDER BY without
