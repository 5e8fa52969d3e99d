// What the hub's answers say: https://huggingface.co/docs/hub/api. They come from outside, so sizes, depths and names
// are checked here; `what` names the model in messages. Throw Error(io), or Error(input) for a name that is no path.
#pragma once

#include <string>
#include <vector>

#include "io/hub_cache.h"

namespace kinora::hub {

std::string parse_commit(const std::string& body, const std::string& what);           // of /api/models/.../revision/...
std::vector<TreeEntry> parse_tree(const std::string& body, const std::string& what);  // of /api/models/.../tree/...
std::string next_page(const std::string& link_header);  // the address of a page after this; empty when it is the last
std::string normalized_etag(std::string etag);          // without W/ and quotes

}  // namespace kinora::hub
