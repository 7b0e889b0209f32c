// Not written yet: answers like a library without CUDA.
#include "decode/cuda_absent.cpp"
