-- Are near neighbours misjudged more often than far ones?
SELECT floor(similarity * 50) / 50 AS similarity_from, count(*) AS candidates,
       avg((misjudgement > 0)::INTEGER) AS misjudged, avg(misjudgement) AS misjudgement
FROM candidates
WHERE variant = 'contrast' AND misjudgement IS NOT NULL
GROUP BY similarity_from
ORDER BY similarity_from
