"""What each flag means: the text of ``--help``, in one place for all scripts."""

HELP = {
    # the model
    "image_size": "height and width of the images in pixels",
    "large_size": "height and width of the images to make",
    "small_size": "height and width of the images to start from",
    "num_channels": "channels of the first level; a multiple of 32",
    "num_res_blocks": "residual blocks of each level",
    "num_heads": "attention heads",
    "num_heads_upsample": "attention heads on the way up; -1 for as many as num_heads",
    "attention_resolutions": "image heights at which attention sits, comma-separated",
    "channel_mult": "channels of each level as multiples of num_channels, such as 1,2,2,2; "
    "empty for those that go with the image size",
    "dropout": "probability of dropping an activation while training",
    "class_cond": "condition on class labels, taken from the file names up to the first _",
    "num_classes": "classes of a class-conditional model, or auto for as many as the images have",
    "in_channels": "channels of the images: 1 (grey), 3 (colour) or 4 (colour with alpha)",
    "use_checkpoint": "recompute activations in the backward pass: less memory, more time",
    "use_scale_shift_norm": "let the timestep scale and shift the normalised activations",
    # the diffusion
    "diffusion_steps": "timesteps of the diffusion",
    "noise_schedule": "linear, cosine or polynomial",
    "poly_power": "power of the polynomial schedule; 1 is the linear one, more holds noise back",
    "timestep_respacing": "timesteps to use, such as 250, 10,15,20 (of equal parts), ddim50 "
    "(a whole stride apart) or logsnr20 (evenly in log SNR); empty for all",
    "learn_sigma": "let the model learn the variances",
    "sigma_small": "use the posterior's variance rather than beta, where it is not learned",
    "use_kl": "train on the variational bound",
    "predict_xstart": "predict the image rather than the noise",
    "rescale_timesteps": "show the model timesteps scaled to 0..1000",
    "rescale_learned_sigmas": "scale the bound's share of the loss by diffusion_steps / 1000",
    # training
    "data_dir": "folder of images; empty for datasets/cifar_train of the project, "
    "or cifar_test for bits/dim",
    "schedule_sampler": "which timesteps to train on: uniform or loss-second-moment",
    "lr": "learning rate",
    "weight_decay": "weight decay of AdamW",
    "lr_anneal_steps": "updates over which the learning rate falls to 0, and the end; 0 for never",
    "batch_size": "images at a time",
    "microbatch": "images whose activations are held at a time while training; -1 for batch_size",
    "ema_rate": "rates of the moving averages of the weights, comma-separated",
    "log_interval": "updates between two lines of the log",
    "sample_interval": "updates between two grids of samples drawn to samples/; 0 for none",
    "save_interval": "updates between two checkpoints",
    "resume_checkpoint": "a modelNNNNNN.pt to go on from, or auto for the newest in log_dir; an "
    "older one of a run goes on in another log_dir only, so that what followed it is not lost",
    "use_fp16": "the same as --precision fp16",
    "fp16_scale_growth": "growth of the base-2 logarithm of fp16's loss scale with each update",
    "precision": "arithmetic of the model: fp32, bf16 or fp16 (GPU only)",
    "compile": "run the model through torch.compile: minutes of compiling, then faster steps",
    "max_steps": "updates to make in all; 0 for no end",
    "max_skipped": "updates in a row that may be skipped as not finite before the run gives up",
    "keep_checkpoints": "checkpoints to keep, newest first; older ones and what is left of them "
    "are removed; 0 for all",
    "seed": "seed of all random numbers",
    "log_dir": "folder of the run's files; empty for OPENAI_LOGDIR, "
    "or else runs/<script>-<date-time> of the project",
    "on_bad_image": "what to do with a file that cannot be read: error, or skip it",
    "random_flip": "mirror every other image at random, left to right",
    "num_workers": "processes that read images ahead; 0 reads them between updates",
    "num_threads": "threads to compute with; 0 for OMP_NUM_THREADS, or else one a processor",
    # the benchmark
    "sample_batch": "images of a sampling step",
    "rounds": "steps of each variant",
    "json": "file to write the table to as JSON; empty for none",
    # sampling and evaluation
    "model_path": "a model*.pt or ema_*.pt file, or a run's folder for its newest ema_*.pt, of "
    "several rates the highest that holds no more than a twentieth of the initial weights, or else "
    "the lowest; the model's flags come from config.json beside it, if there is one",
    "num_samples": "how many images",
    "clip_denoised": "clip the predicted image to the range of pixels at each step",
    "use_ddim": "the same as --sampler ddim",
    "sampler": "ddpm (ancestral), ddim, or dpmpp (DPM-Solver++(2M), 20 steps); empty for ddpm",
    "sampling_steps": "timesteps to sample in, spaced as suits the sampler; 0 for all, "
    "or 20 with dpmpp",
    "eta": "noise that each step of ddim or dpmpp adds, from 0 (none) to 1 (as much as ddpm), "
    "between them not the same in both; empty for 0 with ddim, 0.5 with dpmpp: a young model needs "
    "some",
    "classes": "classes to sample in turn, by name or number, comma-separated; empty: random",
    "save_png": "also write each sample as a picture of its own, to images/",
    "show_process": "also draw how the first samples came about, from noise on: process.png",
    "num_timesteps": "timesteps to estimate the bound of each image from; 0 for all",
    "input": "a noisy picture, or a folder of them; neither scaled nor cut, so sides other than "
    "the model's image_size are mirrored to what it can take, and come out less well",
    "clean": "the known clean picture, or a folder of pictures of the same names, to print the "
    "PSNR before and after; empty for none",
    "sigma": "standard deviation of the noise in steps of 0..255; 0 to estimate it",
    "method": "mean (the expected clean picture: the best PSNR, smooth) or sample (one that is "
    "possible: sharper, a lower PSNR)",
    "label": "class of the pictures, by name or number, for a class-conditional model only",
    # pictures of schedules and results
    "poly_powers": "powers of the polynomial schedules to draw, comma-separated",
    "out": "file to write",
    "out_dir": "new folder to write, for diffusers' DDPMPipeline.from_pretrained",
    "base_samples": "the .npz file of small images to start from",
}
