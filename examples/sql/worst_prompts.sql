-- Which prompts does the reward model get most wrong, and which answer does it prefer there?
SELECT r.row_id, r.seam_contrast, r.prompt, r.response AS golden, r.reward,
       arg_max(c.response, c.misjudgement * c.weight) AS preferred, max(c.reward) AS best_reward
FROM rows AS r JOIN candidates AS c USING (row_id)
WHERE r.seam_contrast < 0
GROUP BY ALL
ORDER BY r.seam_contrast, r.row_id
LIMIT 20
