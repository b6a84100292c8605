-- Drop the prompts on which the reward pays for what a second opinion fails: more than `most` of the policy's samples pass
-- the reward and not the truth, as the step `difficulty` with a `truth` found them. By default one such sample is too much.
-- Rows without such a score are kept, or dropped with nulls: drop.
-- In the gold world, with most 0.1 and three poor reward models, it kept 53 to 56 % of 1,500 prompts; best of 4 over as many at
-- random: -.004 to +.006, each about .005 either way. Training on it was not run.
-- default most = 0
-- default nulls = keep (or drop)
SELECT row_id,
       coalesce(hacked_policy <= $most, $nulls = 'keep') AS keep,
       CASE WHEN hacked_policy IS NULL THEN $nulls || ' rows without a second opinion'
            WHEN hacked_policy > $most THEN 'the reward passes samples that the second opinion fails'
            ELSE 'keep prompts on which both agree about what passes' END AS rule,
       hacked_policy AS value,
       $most::DOUBLE AS threshold
FROM rows
