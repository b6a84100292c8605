-- Which answers of the corpus does the reward model prefer wrongly again and again?
SELECT c.source_row_id, count(*) AS preferred_to, avg(c.misjudgement) AS by_how_much, any_value(c.response) AS response
FROM candidates AS c
WHERE c.misjudgement > 0 AND c.source_row_id IS NOT NULL
GROUP BY c.source_row_id
ORDER BY preferred_to DESC, c.source_row_id
LIMIT 20
