"""Which library multiplies is measured, and the products are the same up to rounding."""

import pytest
import torch

from seamcurate.models import product


@pytest.fixture
def measured(monkeypatch):
    """Return a function that sets how long a product takes by each library, in seconds."""

    # Elsewhere nothing is measured.
    monkeypatch.setattr(product, "_on_amd", lambda: True)

    def set_seconds(onednn, mkl):
        product._onednn_leads.cache_clear()
        times = iter([onednn, mkl] * product._ROUNDS)
        monkeypatch.setattr(product, "_seconds", lambda work: (work(), next(times))[1])

    yield set_seconds
    product._onednn_leads.cache_clear()


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_the_faster_library_multiplies_and_onednn_does_where_they_are_alike(measured):
    for onednn, mkl, leads in ((1.0, 2.0, True), (1.0, 0.95, True), (1.0, 0.5, False)):
        measured(onednn, mkl)
        assert product.by_onednn(8, 4) is leads


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_what_was_measured_and_chosen_is_told(measured, monkeypatch):
    monkeypatch.setattr(product, "trials", [])
    assert product.told() == []
    for shape, seconds in (((8, 4), (1e-3, 5e-4)), ((16, 4), (2e-3, 4e-3))):
        measured(*seconds)
        product.by_onednn(*shape)
    assert product.told() == [
        "float32 products: oneDNN for 1 and MKL for 1 of 2 shapes of weights, as measured when they were loaded; "
        "256 rows by 16 × 4 took 2 ms by oneDNN and 4 ms by MKL"
    ]


def test_a_shape_is_measured_once(measured):
    measured(1.0, 2.0)
    assert product.by_onednn(8, 4) == product.by_onednn(8, 4)
    # All of a large vocabulary is measured as a part of it.
    measured(1.0, 2.0)
    assert product.by_onednn(50_000, 4) == product.by_onednn(60_000, 4)


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (2.0, 1.0)])
def test_either_library_gives_the_same_numbers(measured, monkeypatch, seconds):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 8, bias=False)).eval()
    rows = torch.randn(3, 5, 24)
    with torch.inference_mode():
        expected = model(rows)
        # Two shapes are measured.
        product._onednn_leads.cache_clear()
        times = iter([*seconds * product._ROUNDS] * 2)
        monkeypatch.setattr(product, "_seconds", lambda work: (work(), next(times))[1])
        product.quicken(model)
        assert torch.allclose(model(rows), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_gelu_is_computed_with_the_product_before_it_where_it_is_that_function(activation):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertIntermediate

    torch.manual_seed(0)
    layer = BertIntermediate(BertConfig(hidden_size=24, intermediate_size=48, hidden_act=activation)).eval()
    rows = torch.randn(7, 24)
    with torch.inference_mode():
        expected = layer(rows)
        product.quicken(layer)
        assert torch.allclose(layer(rows), expected, atol=1e-5)
    assert ("forward" in vars(layer)) == (activation == "gelu" and product.by_onednn(48, 24))


def test_every_process_multiplies_alike_where_the_libraries_are_alike(measured, monkeypatch):
    # On a busy machine, the trial itself would tell one process this and another that.
    for onednn, mkl in ((1.0, 2.0), (2.0, 1.0)):
        measured(onednn, mkl)
        monkeypatch.setattr(product, "_on_amd", lambda: False)
        assert not product.by_onednn(8, 4)
