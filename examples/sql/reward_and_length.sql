-- Does the reward model pay for length? Reward per further 100 characters of a candidate, and their correlation.
SELECT variant, count(*) AS candidates, 100 * regr_slope(reward, len(response)) AS per_100_characters,
       corr(reward, len(response)) AS correlation
FROM candidates
WHERE reward IS NOT NULL AND response IS NOT NULL
GROUP BY variant
ORDER BY variant
