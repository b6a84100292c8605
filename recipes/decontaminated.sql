-- Drop the rows that share words with another data set, or come near to one of its prompts, as the step `nearest` found.
-- {overlap}, {similarity} and {nearest} are columns of that step: overlap_NAME, nearest_NAME_similarity and nearest_NAME.
-- The rule names the other set's row; the value is what exceeded its threshold. By default one shared run of 13 words is
-- too much, as in GPT-3 (App. C), and so is a cosine above 0.95. What it gives for training is not measured.
-- default most_overlap = 0
-- default most_similarity = 0.95
WITH compared AS (
  SELECT row_id, {nearest} AS match, {overlap} AS overlap, {similarity} AS similarity,
         coalesce({overlap} > $most_overlap, false) AS shares, coalesce({similarity} > $most_similarity, false) AS is_near
  FROM rows
)
SELECT row_id,
       NOT (shares OR is_near) AS keep,
       CASE WHEN shares THEN 'shares words by ' || $overlap || '; nearest is row ' || match
            WHEN is_near THEN 'too near to row ' || match || ' by ' || $nearest
            WHEN overlap IS NULL AND similarity IS NULL THEN 'keep rows that could not be compared'
            ELSE 'keep rows apart from the other set' END AS rule,
       CASE WHEN shares THEN overlap ELSE similarity END AS value,
       CASE WHEN shares THEN $most_overlap::DOUBLE ELSE $most_similarity::DOUBLE END AS threshold
FROM compared
