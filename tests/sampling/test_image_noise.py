import torch as th

from improved_diffusion.sampling.image_noise import ImageNoise

SHAPE = (3, 8, 8)


def draw(seed, indices, steps=3):
    noise = ImageNoise(seed, indices)
    x = th.empty(len(noise), *SHAPE)
    return [noise.randint(10), *(noise.randn_like(x) for _ in range(steps))]


def test_an_image_has_the_same_noise_in_any_batch():
    together = draw(5, range(4))
    for first, second in zip(draw(5, [2, 3]), draw(5, [3]), strict=True):
        assert th.equal(first[1], second[0])
    for whole, part in zip(together, draw(5, [2, 3]), strict=True):
        assert th.equal(whole[2:], part)


def test_images_seeds_and_steps_differ():
    _, one, two, _ = draw(5, range(2))
    assert not th.equal(one[0], one[1])
    assert not th.equal(one, two)
    assert not th.equal(one, draw(6, range(2))[1])


def test_the_noise_is_standard_normal():
    noise = ImageNoise(0, range(2000)).randn_like(th.empty(2000, 64))
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    across = th.corrcoef(noise[:50]).fill_diagonal_(0)
    assert across.abs().max() < 0.6  # neighbours' streams have nothing to do with each other


def test_classes_are_uniform():
    drawn = ImageNoise(1, range(3000)).randint(3).bincount()
    assert drawn.shape == (3,)
    assert (abs(drawn - 1000) < 120).all()


def test_it_has_the_dtype_of_what_it_is_for_and_leaves_the_global_generator_alone():
    th.manual_seed(0)
    before = th.get_rng_state()
    x = ImageNoise(0, [0]).randn_like(th.empty(1, 2, dtype=th.float64))
    assert x.dtype == th.float64
    assert th.equal(th.get_rng_state(), before)
