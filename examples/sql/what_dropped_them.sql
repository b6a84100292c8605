-- What dropped rows from each split, by which rule and up to which value?
SELECT split, kept, rule, count(*) AS prompts, min(value) AS lowest, max(value) AS highest, any_value(threshold) AS threshold
FROM ledger
GROUP BY split, kept, rule
ORDER BY split, kept, prompts DESC
