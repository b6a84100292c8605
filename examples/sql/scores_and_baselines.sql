-- What do the scores share with simple baselines? Correlations with length, repetition and chance.
UNPIVOT (
  SELECT corr(seam_contrast, len(response)) AS seam_length, corr(seam_contrast, rer_repetition) AS seam_repetition,
         corr(seam_contrast, hash(row_id)) AS seam_random, corr(rer, len(response)) AS rer_length,
         corr(rer, seam_contrast) AS rer_seam
  FROM rows
) ON COLUMNS(*) INTO NAME pair VALUE correlation
