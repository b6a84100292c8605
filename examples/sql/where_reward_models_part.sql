-- Where do two reward models part? Run with --other SECOND_STORE, made of the same rows with another reward model.
SELECT row_id, a.seam_contrast AS here, b.seam_contrast AS there,
       a.misjudged_contrast AS misjudged_here, b.misjudged_contrast AS misjudged_there, a.prompt
FROM rows AS a JOIN other.rows AS b USING (row_id)
ORDER BY abs(a.misjudged_contrast - b.misjudged_contrast) DESC NULLS LAST, row_id
LIMIT 20
