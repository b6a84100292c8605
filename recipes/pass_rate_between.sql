-- Keep the prompts that the policy solves sometimes: a pass rate from `low` to `high`, as the step `difficulty` measured it.
-- Prompts outside teach GRPO little: all samples pass, or none does. The rule says which. A rate over n samples moves in
-- steps of 1/n, and rollout_pass_low and rollout_pass_high hold its 95 % interval.
-- In the gold world, .2 to .8 by three poor reward models kept 9 to 12 % of 1,500 prompts, and best of 4 gained nothing
-- over as many prompts at random (-.001 to +.002). By a verifier the rate is what it says; training on it was not run.
-- default low = 0.2
-- default high = 0.8
-- default nulls = drop (or keep)
SELECT row_id,
       coalesce(rollout_pass_rate BETWEEN $low AND $high, $nulls = 'keep') AS keep,
       CASE WHEN rollout_pass_rate IS NULL THEN $nulls || ' rows without a pass rate'
            WHEN rollout_pass_rate < $low THEN 'too hard: passes less often than ' || $low
            WHEN rollout_pass_rate > $high THEN 'too easy: passes more often than ' || $high
            ELSE 'keep prompts that pass sometimes' END AS rule,
       rollout_pass_rate AS value,
       CASE WHEN rollout_pass_rate < $low THEN $low::DOUBLE WHEN rollout_pass_rate > $high THEN $high::DOUBLE END AS threshold
FROM rows
