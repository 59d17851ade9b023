"""Diffusion: images from noise, and from a text.

    schedule.py         how much of an image is left after each of T steps
    process.py          the forward process, which adds noise, and what its inverse has to know
    sampler.py          the reverse process: DDPM's steps and DDIM's, from noise to an image
    unet.py             the network that sees a noisy image and says what is noise
    text_encoder.py     the network that reads the prompt
    text_to_image.py    both together, with classifier-free guidance
    autoencoder.py      a smaller space to do all this in
    prompts.py          words, their ids, and what may be asked for
    learning.py         the loss of a training step, and the average of the weights
    painter.py          a trained model with all it needs to draw
    scores.py           how good drawn images are
    plots.py            grids and animations
    studio.py           what the two recipes share

Source: the document's section "Modèles de Diffusion".
"""
