-- Drop the rows that repeat an earlier row, as the step `duplicates` found them; of a group the first stays.
-- The rule names the row that is repeated, the value is the cosine of the two prompts. A lower `similarity` of the step
-- drops more. What it gives for training is not measured.
SELECT row_id,
       duplicate_of IS NULL AS keep,
       CASE WHEN duplicate_of IS NULL THEN 'keep rows that repeat no earlier one' ELSE 'repeats row ' || duplicate_of END AS rule,
       duplicate_similarity AS value
FROM rows
