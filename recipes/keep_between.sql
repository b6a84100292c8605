-- Keep the rows whose column lies between two values, both included: a band of difficulty, length or reward.
-- Either end may be left open. Rows without a value are dropped, or kept with nulls: keep.
-- default low = null
-- default high = null
-- default nulls = drop (or keep)
SELECT row_id,
       CASE WHEN {by} IS NULL OR NOT isfinite({by}::DOUBLE) THEN $nulls = 'keep'
            ELSE {by} >= coalesce($low::DOUBLE, '-infinity') AND {by} <= coalesce($high::DOUBLE, 'infinity') END AS keep,
       CASE WHEN {by} IS NULL OR NOT isfinite({by}::DOUBLE) THEN $nulls || ' rows without ' || $by
            WHEN {by} < $low::DOUBLE THEN $by || ' below ' || $low::DOUBLE
            WHEN {by} > $high::DOUBLE THEN $by || ' above ' || $high::DOUBLE
            ELSE $by || ' inside the band' END AS rule,
       CASE WHEN isfinite({by}::DOUBLE) THEN {by}::DOUBLE END AS value,
       CASE WHEN {by} < $low::DOUBLE THEN $low::DOUBLE WHEN {by} > $high::DOUBLE THEN $high::DOUBLE END AS threshold
FROM rows
