-- Which source rows were set aside, and why?
SELECT reason, count(*) AS prompts, min(row_id) AS for_example
FROM rejected
GROUP BY reason
ORDER BY prompts DESC, reason
