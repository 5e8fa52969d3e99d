#include "io/digest.h"

#include <openssl/evp.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "core/error.h"

namespace kinora {

struct Digest::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

Digest::Digest(const char* algorithm) : state_(std::make_shared<State>()) {
  const EVP_MD* kind = EVP_get_digestbyname(algorithm);
  check(kind && EVP_DigestInit_ex(state_->context, kind, nullptr) == 1, "OpenSSL has no such digest");
}

Digest Digest::sha256() { return Digest("SHA256"); }

Digest Digest::git_blob(uint64_t size) {
  Digest digest("SHA1");
  std::string head = "blob " + std::to_string(size);
  digest.update(head.c_str(), head.size() + 1);
  return digest;
}

void Digest::update(const void* data, size_t size) {
  check(EVP_DigestUpdate(state_->context, data, size) == 1, "OpenSSL could not add to a digest");
}

std::string Digest::hex() {
  unsigned char bytes[EVP_MAX_MD_SIZE];
  unsigned int count = 0;
  check(EVP_DigestFinal_ex(state_->context, bytes, &count) == 1, "OpenSSL could not end a digest");
  std::string text;
  for (unsigned int i = 0; i < count; ++i) {
    text += "0123456789abcdef"[bytes[i] >> 4];
    text += "0123456789abcdef"[bytes[i] & 15];
  }
  return text;
}

std::string digest_of_file(const std::string& path, bool git) {
  std::error_code error;
  uint64_t size = std::filesystem::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) fail(ErrorKind::io, "cannot read " + path);
  Digest digest = git ? Digest::git_blob(size) : Digest::sha256();
  std::vector<char> block(size_t{1} << 20);
  while (file.read(block.data(), static_cast<std::streamsize>(block.size())) || file.gcount() > 0)
    digest.update(block.data(), static_cast<size_t>(file.gcount()));
  if (file.bad()) fail(ErrorKind::io, "cannot read " + path);
  return digest.hex();
}

}  // namespace kinora
