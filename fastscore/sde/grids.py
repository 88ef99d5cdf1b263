import torch
def time_grid(fn, process, grid, points, t_start, t_end):
    if not isinstance(grid, str):
        return torch.as_tensor(grid, dtype=torch.float64)
    u = torch.linspace(0, 1, points, dtype=torch.float64)
    if grid == "uniform":
        return t_start + u * (t_end - t_start)
    a, b = process.noise_level(t_start), process.noise_level(t_end)
    if grid == "log":
        s = torch.exp(a.log() + u * (b.log() - a.log()))
    else:
        s = (a ** (1/7) + u * (b ** (1/7) - a ** (1/7))) ** 7
    t = process.time_of(s)
    t[0], t[-1] = t_start, t_end
    return t
