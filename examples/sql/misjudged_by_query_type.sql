-- Which kinds of query are misjudged most? (Put a source column of your own in place of query_type.)
SELECT query_type, count(*) AS prompts, count(seam_contrast) AS scored,
       avg(misjudged_contrast) AS misjudged, avg(seam_contrast) AS seam
FROM rows
GROUP BY query_type
ORDER BY misjudged DESC NULLS LAST, query_type
