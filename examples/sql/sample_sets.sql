-- How do the sample sets differ: size, share misjudged, and log-probability a token (SEAM's Table 2)?
SELECT variant, count(DISTINCT row_id) AS prompts, count(*) AS candidates,
       avg((misjudgement > 0)::INTEGER) AS misjudged, sum(logprob) / sum(n_tokens) AS logprob_per_token
FROM candidates
GROUP BY variant
ORDER BY variant
