// Not written yet: answers like a library without CUDA.
#include "cluster/cuda_absent.cpp"
