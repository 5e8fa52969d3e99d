#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "io/digest.h"
#include "io/file.h"
#include "io/hub_cache.h"
#include "temp_folder.h"

namespace kinora::test {
namespace {

namespace fs = std::filesystem;

const std::string kFirst(40, '1'), kSecond(40, '2');

class HubCache : public testing::Test {
 protected:
  // A blob with its right name, and a file of a snapshot that stands for it.
  void put(const std::string& commit, const std::string& path, const std::string& bytes) {
    cache_.create(commit);
    Digest digest = Digest::sha256();
    digest.update(bytes.data(), bytes.size());
    std::string etag = digest.hex();
    std::ofstream(cache_.blob(etag)) << bytes;
    cache_.link(commit, path, etag);
  }
  hub::CachedRepository scan() { return hub::scan_cache(root_).at(0); }

  TempFolder temp_;
  std::string root_ = temp_.path("hub");
  hub::RepositoryCache cache_{root_, "org/model"};
};

TEST_F(HubCache, ScansWhatItWrites) {
  put(kFirst, "a/b/c.json", "shared");
  put(kFirst, "d", "first alone");
  put(kSecond, "e", "shared");
  cache_.write_ref("main", kFirst);
  cache_.write_ref("refs/pr/7", kFirst);
  cache_.write_ref("main", kSecond);
  hub::CachedRepository r = scan();
  EXPECT_EQ(r.problem, "");
  EXPECT_EQ(r.id, "org/model");
  ASSERT_EQ(r.revisions.size(), 2u);
  EXPECT_EQ(r.revisions[0].refs, std::vector<std::string>{"refs/pr/7"});
  EXPECT_EQ(r.revisions[1].refs, std::vector<std::string>{"main"});
  EXPECT_EQ(r.bytes, std::string("sharedfirst alone").size());
  EXPECT_EQ(cache_.commit_of("main"), kSecond);
  EXPECT_EQ(cache_.commit_of(kFirst), kFirst);
  EXPECT_FALSE(cache_.commit_of("other"));
  EXPECT_FALSE(cache_.commit_of("../../etc/passwd"));
  EXPECT_EQ(cache_.files(kFirst), (std::vector<std::string>{"a/b/c.json", "d"}));
}

TEST_F(HubCache, TreesAreKeptAsHuggingFaceKeepsThem) {
  cache_.create(kFirst);
  cache_.write_tree(kFirst, {{"z", 5, "22", std::string(64, 'a'), "ee"}, {"a", 1, "11", "", ""}});
  EXPECT_EQ(read_file(cache_.folder() + "/trees/" + kFirst + ".json", 10000),
            "{\n \"format_version\": 1,\n \"files\": {\n  \"a\": {\n   \"size\": 1,\n   \"blob_id\": \"11\"\n  },\n  "
            "\"z\": {\n   \"size\": 5,\n   "
            "\"blob_id\": \"22\",\n   \"lfs_sha256\": \"" +
                std::string(64, 'a') + "\",\n   \"lfs_size\": 5,\n   \"xet_hash\": \"ee\"\n  }\n }\n}");
  EXPECT_EQ(cache_.read_tree(kFirst)->size(), 2u);
  for (const char* bad : {"", "{", "[]", "{\"format_version\": 2, \"files\": {}}",
                          "{\"format_version\": 1, \"files\": {\"../x\": {\"size\": 1, \"blob_id\": \"1\"}}}",
                          "{\"format_version\": 1, \"files\": {\"x\": {\"size\": -1, \"blob_id\": 1}}}"}) {
    std::ofstream(cache_.folder() + "/trees/" + kFirst + ".json") << bad;
    EXPECT_FALSE(cache_.read_tree(kFirst)) << bad;
  }
}

TEST_F(HubCache, ReplacesALinkThatLeadsElsewhere) {
  put(kFirst, "a", "one");
  put(kFirst, "a", "two");
  EXPECT_EQ(read_file(cache_.file(kFirst, "a"), 10), "two");
}

TEST_F(HubCache, RemovesARevisionAndWhatItAloneUses) {
  put(kFirst, "a", "shared");
  put(kFirst, "b", "first alone");
  put(kSecond, "a", "shared");
  cache_.write_ref("main", kFirst);
  cache_.write_ref("v2", kSecond);
  cache_.write_absent(kFirst, "c/d");
  cache_.write_tree(kFirst, {});
  EXPECT_EQ(hub::remove_revision(root_, scan(), kFirst), 11u);
  hub::CachedRepository r = scan();
  EXPECT_EQ(r.problem, "");
  ASSERT_EQ(r.revisions.size(), 1u);
  EXPECT_EQ(read_file(cache_.file(kSecond, "a"), 10), "shared");
  EXPECT_FALSE(fs::exists(cache_.folder() + "/.no_exist/" + kFirst));
  EXPECT_FALSE(fs::exists(cache_.folder() + "/trees/" + kFirst + ".json"));
  EXPECT_FALSE(fs::exists(cache_.folder() + "/refs/main"));
  EXPECT_THROW(hub::remove_revision(root_, r, kFirst), Error);
  EXPECT_EQ(hub::remove_revision(root_, r, kSecond), 6u);  // the last one takes the folder along
  EXPECT_TRUE(hub::scan_cache(root_).empty());
}

TEST_F(HubCache, NeverDeletesThroughALink) {
  put(kFirst, "a", "bytes");
  fs::create_directories(temp_.path("precious/inner"));
  temp_.write("precious/inner/file", "keep");
  fs::create_directory_symlink(temp_.path("precious"), cache_.snapshot(kFirst) + "/linked");
  fs::create_symlink(temp_.path("precious/inner/file"), cache_.snapshot(kFirst) + "/foreign");
  fs::create_directory_symlink(temp_.path("precious"), cache_.folder() + "/blobs/folder");
  fs::create_symlink(temp_.path("precious/inner/file"), cache_.folder() + "/blobs/outside");
  put(kSecond, "b", "other");
  hub::remove_revision(root_, scan(), kFirst);
  EXPECT_EQ(read_file(temp_.path("precious/inner/file"), 10), "keep");
  hub::remove_revision(root_, scan(), "");
  EXPECT_EQ(read_file(temp_.path("precious/inner/file"), 10), "keep");
  // A model's whole folder that is a link to another disk: the link goes.
  put(kFirst, "a", "bytes");
  fs::rename(cache_.folder(), temp_.path("disk"));
  fs::create_directory_symlink(temp_.path("disk"), cache_.folder());
  EXPECT_EQ(hub::remove_revision(root_, scan(), ""), 0u);
  EXPECT_FALSE(fs::exists(cache_.folder()));
  EXPECT_TRUE(fs::exists(temp_.path("disk/snapshots")));
}

TEST_F(HubCache, ARemovalThatWasKilledIsFinishedLater) {
  put(kFirst, "a", "bytes");
  std::string aside = root_ + "/.locks/models--org--model/123-snapshots.old";
  fs::create_directories(aside + "/inner");
  cache_.create(kFirst);
  EXPECT_FALSE(fs::exists(aside));
  EXPECT_TRUE(cache_.has(kFirst, "a"));
}

TEST_F(HubCache, DamageIsSaidAndRemovable) {
  put(kFirst, "a", "bytes");
  fs::remove(fs::canonical(cache_.file(kFirst, "a")));
  EXPECT_NE(scan().problem.find("blob that is gone"), std::string::npos);
  EXPECT_FALSE(cache_.has(kFirst, "a"));
  EXPECT_TRUE(cache_.files(kFirst).empty());
  hub::remove_revision(root_, scan(), "");
  put(kFirst, "a", "bytes");
  cache_.write_ref("main", kSecond);
  EXPECT_NE(scan().problem.find("refs/main names a commit"), std::string::npos);
  fs::create_directories(root_ + "/models--org--empty");
  fs::create_directories(root_ + "/datasets--org--data/snapshots");
  std::ofstream(root_ + "/models--org--file") << "x";
  EXPECT_EQ(hub::scan_cache(root_).size(), 3u);
  EXPECT_TRUE(hub::scan_cache(temp_.path("nowhere")).empty());
}

TEST_F(HubCache, ALockKeepsOthersWaiting) {
  cache_.create(kFirst);
  std::atomic<bool> stop{false};
  {
    hub::FileLock held = cache_.lock("etag", nullptr, {});
    ASSERT_TRUE(held.held());
    EXPECT_TRUE(cache_.busy());
    EXPECT_THROW(hub::remove_revision(root_, scan(), ""), Error);
    EXPECT_THROW(cache_.lock("etag", &stop, [&] { stop = true; }), Error);  // cancelled while it waits
  }
  EXPECT_FALSE(cache_.busy());
  EXPECT_TRUE(cache_.lock("etag", nullptr, {}).held());
}

TEST_F(HubCache, TheSharedStoreIsKeptWhileAnythingRefersToIt) {
  std::string key(64, 'c'), etag(64, 'e'), store = root_ + "/blobs/cc";
  fs::create_directories(store);
  std::ofstream(root_ + "/blobs/.huggingface-shared-blobs") << "1\n";
  std::ofstream(store + "/" + key) << "bytes";
  hub::RepositoryCache other(root_, "org/other");
  for (hub::RepositoryCache* cache : {&cache_, &other}) {
    cache->create(kFirst);
    EXPECT_FALSE(hub::link_from_shared_store(root_, cache->blob(etag), key, 6));  // of another size
    EXPECT_TRUE(hub::link_from_shared_store(root_, cache->blob(etag), key, 5));
    cache->link(kFirst, "a", etag);
  }
  std::ofstream(store + "/" + key + ".refs", std::ios::app) << "../../etc/passwd\nmodels--org--gone/blobs/x\n\n";
  EXPECT_EQ(hub::shared_store_file(root_, cache_.blob(etag)), store + "/" + key);
  EXPECT_EQ(hub::remove_revision(root_, hub::scan_cache(root_).at(0), ""), 0u);
  EXPECT_EQ(read_file(other.file(kFirst, "a"), 10), "bytes");
  EXPECT_EQ(read_file(store + "/" + key + ".refs", 1000), "models--org--other/blobs/" + etag + "\n");
  fs::rename(store + "/" + key + ".refs", temp_.path("refs"));  // without a list nothing is removed
  EXPECT_EQ(hub::sweep_shared_store(root_, store + "/" + key), 0u);
  fs::rename(temp_.path("refs"), store + "/" + key + ".refs");
  EXPECT_EQ(hub::remove_revision(root_, hub::scan_cache(root_).at(0), ""), 5u);
  EXPECT_FALSE(fs::exists(store + "/" + key));
}

TEST(Digest, KnownValues) {
  TempFolder temp;
  std::string file = temp.write("hello", "hello\n");
  EXPECT_EQ(digest_of_file(file), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
  EXPECT_EQ(digest_of_file(file, true), "ce013625030ba8dba906f756967f9e9ca394464a");  // git hash-object
  EXPECT_THROW(digest_of_file(temp.path("nothing")), Error);
}

}  // namespace
}  // namespace kinora::test
