/* A CUDA driver that is too old for this library, as far as the runtime asks before it gives up. */
int cuInit(unsigned flags);
int cuDriverGetVersion(int* version);

int cuInit(unsigned flags) {
  (void)flags;
  return 0;
}
int cuDriverGetVersion(int* version) {
  *version = 11020; /* CUDA 11.2 */
  return 0;
}
