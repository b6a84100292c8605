"""The configuration that enters hashes is the same bytes in every version: a store made before is not computed anew."""

from __future__ import annotations

import json

from seamcurate import (
    AskQueryType,
    Criterion,
    FakeModel,
    Judge,
    JudgeModel,
    LengthCalibrated,
    Models,
    Perplexity,
    Probes,
    Project,
    Random,
    Recipe,
    RelevantSentences,
    RewardReliability,
    RewardSpread,
    Rip,
    RubricModel,
    Source,
    Store,
    rer,
    run_local,
    seam,
)
from seamcurate.rewards import RerReward
from seamcurate.step import digest

MODEL = FakeModel(path="model")
STEPS = (
    *seam("contrast", reward=MODEL, policy=MODEL),
    *seam("gpt", reward=MODEL, policy=MODEL, likelihoods="all", likelihood="raw", k=3, normalise=True)[1:],
    *seam("adv", reward=MODEL, policy=MODEL)[1:],
    *rer(encoder=MODEL, words="whitespace", stop=("</s>",), fit="quantiles", fallback="query_relevance", min_tokens=1),
    Rip(),
    RewardSpread(variant="gpt"),
    LengthCalibrated(),
    RewardReliability(truth="votes", bands=2),
    Random(),
    Perplexity(base=MODEL),
)
UNRUN = (Judge(variant="adv"), AskQueryType(), RelevantSentences(), Project(), Probes())
IDENTITIES = {
    "reward": "5689576dc91bd2ca8c0c045295f46f8f",
    "rewards_contrast": "de5052953b0ad3d7245d3cbebc8de0ac",
    "logprobs_contrast": "a2baac63d07e5c0070436ac9fc2bc3a8",
    "seam_contrast": "65d6fcff38e5ffb7b9a9df1681c2d7d9",
    "rewards_gpt": "070c7b4426df3b0e2f9b508a3753bd1e",
    "logprobs_gpt": "da5338c744915051141f5b13a1b0cb06",
    "seam_gpt": "4c14320ee5ca2b377480628f30304b6c",
    "rewards_adv": "bb5ab8ef3464922eb61bd93f0bf4e537",
    "logprobs_adv": "849cc32df3b5d8617ecb60f16d3e9aec",
    "seam_adv": "4f7ce3836c56575ca6416fee9fbd30f1",
    "rer_length": "d80bd66a5efaa0ec1fb695d11d5e9c4f",
    "rer_repetition": "29a2c1e566214556e25bcc04836369c6",
    "rer_query_relevance": "f363cfdc3aee532c24770a1c97c565d4",
    "rer_reference_relevance": "73aad48e24158a737f96ea1ad39bc327",
    "rer_other_relevance": "2be9b9183fa1bf25afb85b17074eac10",
    "query_type": "afb150d05ddf37d8af8781407f10d4b0",
    "rer": "650fa46484bfcdb0850e340180205b1b",
    "baseline_rip_contrast": "f8699fc48d0ab7d06d6fd36e39aa3cea",
    "baseline_reward_spread_gpt": "3155ec038e8db329b9c1492d33f8ec79",
    "baseline_calibrated_misjudgement_contrast": "24a9073136239d93701b9bd491d5b7f7",
    "baseline_reward_reliability": "f7ca9480dabd2f2b0f84b96d6b1e8233",
    "baseline_random": "3c0d5a446f3bd5c24b39a164442dfd7c",
    "baseline_perplexity": "dbc34bece812cb59f5c244233c510557",
    "judged_adv": "6441a363ae53a95cb50215752fa410fa",
    "ask_query_type": "db7ce278104de35fac28edc29468274f",
    "relevant_sentences": "38de0507f14faedce9f8adff16e76614",
    "worse_probe": "641b71a9f71dcc0c387ef37d3d39fa01",
    "projection": "174c9d03d666aedd11e7f443ceaf8f5a",
}
FINGERPRINTS = {
    "row_id": "ebf1b182401ab07585a930a0a5823f3a",
    "prompt": "ebf1b182401ab07585a930a0a5823f3a",
    "response": "ebf1b182401ab07585a930a0a5823f3a",
    "reference": "ebf1b182401ab07585a930a0a5823f3a",
    "votes": "ebf1b182401ab07585a930a0a5823f3a",
    "worse_contrast": "ebf1b182401ab07585a930a0a5823f3a",
    "worse_gpt": "ebf1b182401ab07585a930a0a5823f3a",
    "worse_adv": "ebf1b182401ab07585a930a0a5823f3a",
    "baseline_calibrated_misjudgement_contrast": "2307a251928ae9247cfb98c9765237ed",
    "baseline_calibrated_misjudged_contrast": "2307a251928ae9247cfb98c9765237ed",
    "baseline_perplexity": "d7d2bd8e977d8b6d2d009ddf775aee96",
    "baseline_random": "2f0a376c1e749520a394dd2d11ebd770",
    "baseline_reward_band": "be53e6c6c3c161d7e2510d5303b26317",
    "baseline_reward_reliability": "be53e6c6c3c161d7e2510d5303b26317",
    "baseline_reward_spread_gpt": "e4b6316d0231f81ccd13e245e329e973",
    "baseline_reward_margin_gpt": "e4b6316d0231f81ccd13e245e329e973",
    "baseline_rejected_reward_contrast": "8287d87aaf1336a2ffcfcd82ffc7e7ec",
    "baseline_rejected_length_contrast": "8287d87aaf1336a2ffcfcd82ffc7e7ec",
    "baseline_reward_gap_contrast": "8287d87aaf1336a2ffcfcd82ffc7e7ec",
    "logprobs_adv": "a3a0106d61d23eef1b4c6d159c93571d",
    "tokens_adv": "a3a0106d61d23eef1b4c6d159c93571d",
    "boundary_adv": "a3a0106d61d23eef1b4c6d159c93571d",
    "logprobs_contrast": "6a4ba6d84309137dc0aa2386b4caebf7",
    "tokens_contrast": "6a4ba6d84309137dc0aa2386b4caebf7",
    "boundary_contrast": "6a4ba6d84309137dc0aa2386b4caebf7",
    "logprobs_gpt": "d72ce93c8c16455e22023602c5976e82",
    "tokens_gpt": "d72ce93c8c16455e22023602c5976e82",
    "boundary_gpt": "d72ce93c8c16455e22023602c5976e82",
    "query_type": "5cf56802883c559a155266f6dfcc761f",
    "query_type_open": "5cf56802883c559a155266f6dfcc761f",
    "rer": "ca57c1810b136ef370736317116fab63",
    "rer_length": "9fe47fa765d66b094fbe2aaf95038b2b",
    "rer_other_relevance": "a39ab48353b9d51415e069c771d967ee",
    "rer_query_relevance": "7a546fae605053f0a84fc03c896f43bf",
    "rer_reference_relevance": "533ee5a8581850a0d73596dea23e7ad2",
    "rer_repetition": "d7f2db601f1bbc24605afcf61b8678c2",
    "reward": "7a4e2867d03f6d7420061695e962d7e9",
    "rewards_adv": "4dbf64ec46d800bc9b03edbbb3049972",
    "rewards_contrast": "7be911f2d844359718665d4aee7d3f1b",
    "rewards_gpt": "c2efe76723283936b3eace19a2684d84",
    "seam_adv": "60e39426f85617df3c603c831a15eaae",
    "discrepancy_adv": "60e39426f85617df3c603c831a15eaae",
    "misjudged_adv": "60e39426f85617df3c603c831a15eaae",
    "candidates_adv": "60e39426f85617df3c603c831a15eaae",
    "misjudgements_adv": "60e39426f85617df3c603c831a15eaae",
    "weights_adv": "60e39426f85617df3c603c831a15eaae",
    "seam_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "discrepancy_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "misjudged_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "candidates_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "misjudgements_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "weights_contrast": "67f3c8f565ebc563c1102e84fd165f09",
    "seam_gpt": "4995b6ef0fa5678112880e238b03d8e9",
    "discrepancy_gpt": "4995b6ef0fa5678112880e238b03d8e9",
    "misjudged_gpt": "4995b6ef0fa5678112880e238b03d8e9",
    "candidates_gpt": "4995b6ef0fa5678112880e238b03d8e9",
    "misjudgements_gpt": "4995b6ef0fa5678112880e238b03d8e9",
    "weights_gpt": "4995b6ef0fa5678112880e238b03d8e9",
}


def test_identities_of_steps_are_those_of_every_version():
    assert {step.name: digest(step.identity()) for step in (*STEPS, *UNRUN)} == IDENTITIES


def test_fingerprints_of_a_recipe_are_those_of_every_version(tmp_path):
    sets = {
        f"worse_{variant}": [{"response": "an other answer", "similarity": 0.5}, {"response": "no", "similarity": 0.1}]
        for variant in ("contrast", "gpt", "adv")
    }
    rows = [
        {
            "prompt": f"What is {i} and {i}?",
            "response": f"It is {'two ' * (i + 1)}times {i}.",
            "reference": str(2 * i),
            "votes": i * i % 5,
            **sets,
        }
        for i in range(6)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(jsonl=str(file), response="response", reference="reference")
    run_local(Recipe(rows=source, models=Models(), steps=STEPS), tmp_path / "store")
    assert Store(tmp_path / "store").open().fingerprints() == FINGERPRINTS


def test_a_reward_is_shown_as_in_every_version():
    whole = RerReward(encoder=MODEL, stop=("</s>",), fallback="query_relevance", source=(0.5, 2.0))
    assert (
        repr(whole.load())
        == "RerReward(encoder=None, reward='rer', query_type='column', max_response_tokens=512, combine='product', clip=False, source=(0.5, 2.0), fallback='query_relevance', min_tokens=0, words='wordpunct', stop=('</s>',)) of {\"dimensions\": 64, \"fake\": \"model\"}, revision 2"
    )
    assert (
        repr(RerReward(reward="li_rp", combine="sum").load())
        == "RerReward(encoder=None, reward='li_rp', query_type='column', max_response_tokens=512, combine='sum', clip=False, source=(0.0, 3.5), fallback=None, min_tokens=0, words='wordpunct', stop=()) of null, revision 2"
    )


def test_identities_of_judges_and_rubrics_are_those_of_every_version():
    criteria = (
        Criterion(name="correct", text="It is correct."),
        Criterion(name="clear", text="It is clear.", scale=(1, 5)),
    )
    assert JudgeModel(judge=MODEL, scale=(1, 10), draws=1).identity() == JudgeModel(judge=MODEL).identity()
    models = [
        JudgeModel(judge=MODEL),
        JudgeModel(judge=MODEL, scale=(0, 1), draws=3, template="{question}\n{answer}"),
        RubricModel(rubric=criteria, judge=MODEL),
        RubricModel(rubric=criteria, judge=MODEL, outputs="all"),
    ]
    assert [digest(model.identity()) for model in models] == [
        "6bd042283c62b3e0c9383a24f21af901",
        "a61e2c762eac9d9e24230085ad1437f6",
        "70a05c25d33da9a4cde966309e1d5263",
        "fb0340c57645a58df5b6c1a209976397",
    ]
