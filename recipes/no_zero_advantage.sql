-- Drop the prompts whose samples all have one reward, as the step `difficulty` found them: under GRPO they give no gradient.
-- The value is the standard deviation of the samples' rewards. Rows with fewer than two samples cannot be told: they are
-- kept, or dropped with nulls: drop.
-- In the gold world it kept 85 % of 1,500 prompts, and best of 4 by three poor reward models gained nothing over random (-.003
-- to +.001): such prompts cost samples, not quality. Training on it was not run.
-- default nulls = keep (or drop)
SELECT row_id,
       coalesce(NOT rollout_zero_advantage, $nulls = 'keep') AS keep,
       CASE WHEN rollout_zero_advantage IS NULL THEN $nulls || ' rows with fewer than two samples'
            WHEN rollout_zero_advantage THEN 'all samples have the reward ' || rollout_reward_best
            ELSE 'keep prompts whose samples differ in reward' END AS rule,
       rollout_reward_std AS value
FROM rows
